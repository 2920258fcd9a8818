"""Studies that train models or select pairs in order to measure a choice."""
