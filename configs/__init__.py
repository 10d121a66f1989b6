"""One file an experiment, each with `get_config() -> Config`; `base` holds the dataclasses."""
