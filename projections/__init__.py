"""The read side of the trading ledger: tables that are folds of the journal."""
