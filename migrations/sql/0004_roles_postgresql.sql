REVOKE ALL ON workers, parked_keys, skipped_events, side_tables, side_checkpoints, snapshots,
    snapshot_chunks FROM PUBLIC;
--;;
GRANT SELECT ON workers, parked_keys, skipped_events, side_tables, side_checkpoints, snapshots,
    snapshot_chunks TO ledger_service, ledger_projector, ledger_reader;
--;;
GRANT INSERT, UPDATE, DELETE ON workers, parked_keys, snapshots, snapshot_chunks
    TO ledger_projector;
--;;
GRANT INSERT ON skipped_events TO ledger_projector;
