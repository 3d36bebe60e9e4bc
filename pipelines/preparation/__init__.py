"""The steps of `pipelines.prepare`, from readers to records."""
