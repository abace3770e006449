"""Eight bits: where a graph is rounded, ranges from pictures, and the graphs for the engines. No torch."""
