"""The write side of the trading ledger: append events, read them back, know what was stored."""
