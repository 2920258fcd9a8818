"""From the bytes of a file to a grey radiograph: readers, look-up tables, resampling, and what is unreadable."""
