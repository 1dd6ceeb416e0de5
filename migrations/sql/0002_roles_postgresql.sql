REVOKE ALL ON users, api_keys, positions, orders, security_audit_logs, marks, checkpoints
    FROM PUBLIC;
--;;
GRANT SELECT ON users, api_keys, positions, orders, security_audit_logs, marks, checkpoints
    TO ledger_service, ledger_projector, ledger_reader;
--;;
GRANT INSERT, UPDATE ON users, api_keys, positions, orders, marks, checkpoints
    TO ledger_projector;
--;;
GRANT INSERT ON security_audit_logs TO ledger_projector;
