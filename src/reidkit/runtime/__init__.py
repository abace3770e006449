"""Engines: `load` opens a bundle on one of them; each engine is one file."""
