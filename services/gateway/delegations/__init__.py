"""Parts of budgets, handed on to runs and sub-agents with keys of their own (BU-9)."""
