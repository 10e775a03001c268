"""The configuration: schema, validation, and loading through Hydra."""
