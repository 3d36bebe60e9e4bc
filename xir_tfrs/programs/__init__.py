"""What all programs share: settings, flags, `main`, progress."""
