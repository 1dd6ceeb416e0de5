-- A data key is never lost by a slip: it is destroyed for good, or wrapped anew, and that is all.
CREATE FUNCTION ledger_deny_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.destroyed_at IS NOT NULL
        OR (NEW.journal, NEW.subject, NEW.key_id, NEW.created_at)
            <> (OLD.journal, OLD.subject, OLD.key_id, OLD.created_at)
    THEN
        RAISE EXCEPTION 'a data key can only be wrapped anew, or destroyed for good'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
--;;
CREATE TRIGGER only_ends BEFORE UPDATE ON subject_keys
    FOR EACH ROW EXECUTE FUNCTION ledger_deny_key_change();
--;;
CREATE TRIGGER append_only BEFORE DELETE ON subject_keys
    FOR EACH ROW EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON subject_keys
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_deny();
--;;
ALTER TABLE subject_keys ENABLE ALWAYS TRIGGER only_ends;
--;;
ALTER TABLE subject_keys ENABLE ALWAYS TRIGGER append_only;
--;;
ALTER TABLE subject_keys ENABLE ALWAYS TRIGGER append_only_truncate;
--;;
DO $$
BEGIN
    CREATE ROLE ledger_eraser NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;
--;;
REVOKE ALL ON subject_keys FROM PUBLIC;
--;;
GRANT SELECT ON subject_keys TO ledger_service, ledger_projector, ledger_reader, ledger_eraser;
--;;
GRANT INSERT ON subject_keys TO ledger_service, ledger_eraser;
--;;
GRANT UPDATE (wrapped, destroyed_at) ON subject_keys TO ledger_eraser;
