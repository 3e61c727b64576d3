"""Evaluation: public data sets in their own layouts, and small sets made here for nano."""
