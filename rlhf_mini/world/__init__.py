"""The mini world: knowledge, prompts, gold score, writers, labelers and the "web" corpus.

It is one provider of the three kinds of record that the stages read (demonstrations, prompts, rankings). The stages
do not know it: they read JSONL files and call labelers through a provider string.
"""
