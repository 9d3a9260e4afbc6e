"""Turn a pretrained encoder into a classifier that can be judged, compared and used."""
