"""Pages, contact sheets and plots for people to look at."""
