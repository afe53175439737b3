"""A serving engine behind HTTP: endpoints, keys, limits, metrics, a page. Needs `pip install "peft_aot[serve]"`."""
