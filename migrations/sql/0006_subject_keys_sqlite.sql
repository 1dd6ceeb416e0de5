-- A data key is never lost by a slip: it is destroyed for good, or wrapped anew, and that is all.
-- REPLACE gets past delete triggers, so a second key of a subject is left out, as ON CONFLICT would.

CREATE TRIGGER subject_keys_update BEFORE UPDATE ON subject_keys
WHEN OLD.destroyed_at IS NOT NULL OR NEW.journal <> OLD.journal OR NEW.subject <> OLD.subject
    OR NEW.key_id <> OLD.key_id OR NEW.created_at <> OLD.created_at
BEGIN SELECT RAISE(ABORT, 'a data key can only be wrapped anew, or destroyed for good'); END;
--;;
CREATE TRIGGER subject_keys_delete BEFORE DELETE ON subject_keys
BEGIN SELECT RAISE(ABORT, 'table subject_keys is append-only: DELETE denied'); END;
--;;
CREATE TRIGGER subject_keys_replace BEFORE INSERT ON subject_keys
WHEN EXISTS (SELECT 1 FROM subject_keys WHERE journal = NEW.journal
    AND (subject = NEW.subject OR key_id = NEW.key_id))
BEGIN SELECT RAISE(IGNORE); END;
