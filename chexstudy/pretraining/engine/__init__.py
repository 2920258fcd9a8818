"""What every training needs, whatever its objective: processes, checkpoints, loading, schedules, costs."""
