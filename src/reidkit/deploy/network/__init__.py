"""The known networks, described once as calls on `Layers`; one file a writer. No torch and no parser on this path."""
