"""The study: what the paper claims and what starzoo claims, one YAML file per experiment."""
