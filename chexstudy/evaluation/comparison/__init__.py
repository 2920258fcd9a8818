"""Two models side by side, paired by patient: from their score files or from a study."""
