"""The mini world: knowledge, prompts, gold score, writers, labelers, the "web" corpus and the base model.

It is one source of the examples that the stages read (demonstrations, prompts, rankings). The stages do not import it:
they read JSONL files and load labelers by name, "package.module:function".
"""
