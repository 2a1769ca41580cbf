"""From the folders people have to the slices a network sees."""
