"""What a method is given: its trial, a pool of samples, the corpus, TRL's losses."""
