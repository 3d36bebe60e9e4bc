"""What all programs share: settings, `main`, progress. Without TensorFlow.

A program is a docstring, a config, and a function that takes it:

    '''Counts the rows of a file.

        xir-tfrs count --input FILE
    '''

    import dataclasses
    import sys

    from xir_tfrs.programs import main, settings


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class CountConfig(settings.Settings):
      '''What to count.'''

      input: str = settings.setting("File to read.")
      limit: int | None = settings.setting(
        "Stop after this many rows. Default: read all.", None, minimum=1
      )


    def count(config: CountConfig) -> None:
      from pipelines import counting  # Imports TensorFlow.

      print(counting.rows(config.input, config.limit))


    if __name__ == "__main__":
      sys.exit(main.run(CountConfig, count))

`main.run` gives it a flag for each setting, `--config FILE`, `--help` and
`--debug`. A field without a default is a flag that is needed. Programs import
TensorFlow within the function: `--help` and wrong flags do not wait for it.

What a user can put right is reported in one line. Raise
`settings.SettingsError` for a setting, `data.errors.DataError` for files and
directories, and `main.ProgramError` for work that fails for a known reason;
`OSError` is reported so as well. All other exceptions are bugs and show their
traceback.
"""
