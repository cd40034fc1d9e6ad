"""The verbs: plan, choose, run, wait."""
