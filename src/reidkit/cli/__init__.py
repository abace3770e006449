"""The command `reid`: one file per command. The only place that prints."""
