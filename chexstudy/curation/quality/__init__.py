"""What a selection is worth: who is kept, who is lost, mismatched pairs, overlap of two selections."""
