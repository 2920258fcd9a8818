"""Reports written from images, and how right they are."""
