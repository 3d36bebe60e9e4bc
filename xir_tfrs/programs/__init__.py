"""Settings, `main` and progress for all programs, without TensorFlow.

A program consists of a docstring, a config, and a function of the config:

    '''Counts the rows of a file.

        xir-tfrs count --input FILE
    '''

    import dataclasses
    import sys

    from xir_tfrs.programs import main, settings


    @dataclasses.dataclass(frozen=True, kw_only=True)
    class CountConfig(settings.Settings):
      '''Settings of the count.'''

      input: str = settings.setting("File to read.")
      limit: int | None = settings.setting(
        "Stop after this many rows. Default: read all.", None, minimum=1
      )


    def count(config: CountConfig) -> None:
      from pipelines import counting  # Imports TensorFlow.

      print(counting.rows(config.input, config.limit))


    if __name__ == "__main__":
      sys.exit(main.run(CountConfig, count))

`main.run` adds a flag for each setting, `--config FILE`, `--help` and
`--debug`. A field without a default is a required flag. Programs import
TensorFlow inside the function, so that `--help` and wrong flags return fast.

Errors that a user can fix are reported in one line. Raise
`settings.SettingsError` for a setting, `data.errors.DataError` for files and
directories, and `main.ProgramError` for work that fails for a known reason;
`OSError` is reported in the same way. All other exceptions are bugs and show
their traceback.
"""
