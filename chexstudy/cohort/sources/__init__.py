"""One adapter for each public data set, and one for your own folder."""
