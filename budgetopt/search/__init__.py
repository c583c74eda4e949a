"""The search: an Optuna study as the only record, our own Ray Tune searcher and scheduler."""
