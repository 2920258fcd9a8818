"""What one AUROC hides: prompts, negatives, prevalence, thresholds, calibration."""
