-- Group roles; give them to your login roles with GRANT ledger_service TO …. Roles belong to the
-- whole server, so another database may have made them already.
DO $$
DECLARE v_role text;
BEGIN
    FOREACH v_role IN ARRAY ARRAY['ledger_service', 'ledger_projector', 'ledger_reader'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END $$;
--;;
REVOKE ALL ON journals, events, event_tags FROM PUBLIC;
--;;
GRANT SELECT ON journals, events, event_tags
    TO ledger_service, ledger_projector, ledger_reader;
--;;
GRANT INSERT (name, created_at) ON journals TO ledger_service;
--;;
REVOKE ALL ON FUNCTION ledger_settle FROM PUBLIC;
--;;
REVOKE ALL ON FUNCTION ledger_append FROM PUBLIC;
--;;
GRANT EXECUTE ON FUNCTION ledger_settle TO ledger_service, ledger_projector, ledger_reader;
--;;
GRANT EXECUTE ON FUNCTION ledger_append TO ledger_service;
