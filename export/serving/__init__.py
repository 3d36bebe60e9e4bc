"""The parts of the reference server, `xir-tfrs serve`."""
