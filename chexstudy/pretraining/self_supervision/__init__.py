"""What an encoder learns from images alone: DINO, iBOT and KoLeo, as DINOv2 joins them and CheXFound uses them."""
