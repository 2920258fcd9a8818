"""Every task, each number with its interval and its n."""
