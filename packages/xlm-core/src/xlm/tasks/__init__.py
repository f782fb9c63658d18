"""Tasks that tell families apart: one file a task, with its generator, its views and its own check of an answer."""
