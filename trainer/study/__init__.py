"""Questions that take several trainings to answer. Each training of a study is an ordinary run."""
