"""Reports for others: security events as OCSF, and the audit trail of orders."""
