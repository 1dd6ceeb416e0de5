-- What the functions keep by SET search_path FROM CURRENT: this schema, and temporary tables last.
DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);
END $$;
--;;
-- A tile only grows: what it holds stays its beginning. One of 256 hashes, which is as long as any
-- may be, therefore never changes.
CREATE FUNCTION ledger_deny_tile_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.journal_id, NEW.level, NEW.tile_index) <> (OLD.journal_id, OLD.level, OLD.tile_index)
        OR substring(NEW.hashes FROM 1 FOR length(OLD.hashes)) <> OLD.hashes
    THEN
        RAISE EXCEPTION 'table hash_tiles is append-only: hashes only follow those that are there'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
--;;
-- A seal only grows; another origin begins at the same tree.
CREATE FUNCTION ledger_deny_unsealing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.journal_id <> OLD.journal_id OR NEW.size < OLD.size
        OR (NEW.size = OLD.size AND NEW.root <> OLD.root)
    THEN
        RAISE EXCEPTION 'the seal of a journal can only grow'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
--;;
-- A signed note may get more signatures.
CREATE FUNCTION ledger_deny_checkpoint_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.journal_id, NEW.origin, NEW.size, NEW.made_at)
            <> (OLD.journal_id, OLD.origin, OLD.size, OLD.made_at)
        OR left(NEW.note, length(OLD.note)) <> OLD.note
    THEN
        RAISE EXCEPTION 'table signed_checkpoints is append-only: UPDATE denied'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
--;;
-- The newest checkpoint of a log stays, and so does the first one of each minute.
CREATE FUNCTION ledger_deny_checkpoint_loss() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM signed_checkpoints c
            WHERE c.journal_id = OLD.journal_id AND c.origin = OLD.origin AND c.size > OLD.size)
        OR NOT EXISTS (SELECT 1 FROM signed_checkpoints c
            WHERE c.journal_id = OLD.journal_id AND c.origin = OLD.origin AND c.size < OLD.size
                AND floor(extract(epoch FROM c.made_at) / 60)
                    = floor(extract(epoch FROM OLD.made_at) / 60))
    THEN
        RAISE EXCEPTION 'table signed_checkpoints is append-only: DELETE denied'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END $$;
--;;
CREATE TRIGGER only_grows BEFORE UPDATE ON hash_tiles
    FOR EACH ROW EXECUTE FUNCTION ledger_deny_tile_change();
--;;
CREATE TRIGGER append_only BEFORE DELETE ON hash_tiles
    FOR EACH ROW EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON hash_tiles
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER only_grows BEFORE UPDATE ON seals
    FOR EACH ROW EXECUTE FUNCTION ledger_deny_unsealing();
--;;
CREATE TRIGGER append_only BEFORE DELETE ON seals
    FOR EACH ROW EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON seals
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER only_grows BEFORE UPDATE ON signed_checkpoints
    FOR EACH ROW EXECUTE FUNCTION ledger_deny_checkpoint_change();
--;;
CREATE TRIGGER append_only BEFORE DELETE ON signed_checkpoints
    FOR EACH ROW EXECUTE FUNCTION ledger_deny_checkpoint_loss();
--;;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON signed_checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_deny();
--;;
ALTER TABLE hash_tiles ENABLE ALWAYS TRIGGER only_grows;
--;;
ALTER TABLE hash_tiles ENABLE ALWAYS TRIGGER append_only;
--;;
ALTER TABLE hash_tiles ENABLE ALWAYS TRIGGER append_only_truncate;
--;;
ALTER TABLE seals ENABLE ALWAYS TRIGGER only_grows;
--;;
ALTER TABLE seals ENABLE ALWAYS TRIGGER append_only;
--;;
ALTER TABLE seals ENABLE ALWAYS TRIGGER append_only_truncate;
--;;
ALTER TABLE signed_checkpoints ENABLE ALWAYS TRIGGER only_grows;
--;;
ALTER TABLE signed_checkpoints ENABLE ALWAYS TRIGGER append_only;
--;;
ALTER TABLE signed_checkpoints ENABLE ALWAYS TRIGGER append_only_truncate;
--;;
-- Sealing is a role of its own: who appends events, or projects them, cannot seal them.
DO $$
BEGIN
    CREATE ROLE ledger_sealer NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;
--;;
REVOKE ALL ON hash_tiles, seals, signed_checkpoints FROM PUBLIC;
--;;
GRANT SELECT ON hash_tiles, seals, signed_checkpoints
    TO ledger_service, ledger_projector, ledger_reader, ledger_sealer;
--;;
GRANT SELECT ON journals, events, event_tags TO ledger_sealer;
--;;
GRANT INSERT, UPDATE ON hash_tiles, seals TO ledger_sealer;
--;;
GRANT INSERT, UPDATE, DELETE ON signed_checkpoints TO ledger_sealer;
