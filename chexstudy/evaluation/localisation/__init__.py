"""Where a head looks, against where the finding is."""
