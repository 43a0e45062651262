"""The benchmarks of the three papers, read from their own files on the user's disk, and scored by their own rules.

items      one thing to ask, what came of it, and what a benchmark is
files      reading JSON, JSONL, TSV and CSV, with errors that say which file
questions  VQAv2, GQA, VizWiz, TextVQA, ST-VQA, DocVQA, ChartQA: answers in words
choices    ScienceQA, AI2D, SEED, MMBench: answers by letter
yesno      POPE, MME
open       captions of COCO and TextCaps; LLaVA-Bench and MM-Vet, which a judge scores
likelihood MMLU: the likelier of four letters
vqa, texts, letters, cider   the metrics, of texts alone
judge      requests to a judge, and its answers
suite      all of them by name
run        asking a model, batch by batch, and going on where it stopped
"""
