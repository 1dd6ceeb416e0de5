-- A tile only grows, a seal only grows, a signed note may get more signatures. REPLACE gets past
-- delete triggers, so inserts are held to the same.

CREATE TRIGGER hash_tiles_update BEFORE UPDATE ON hash_tiles
WHEN NEW.journal_id <> OLD.journal_id OR NEW.level <> OLD.level
    OR NEW.tile_index <> OLD.tile_index
    OR substr(NEW.hashes, 1, length(OLD.hashes)) <> OLD.hashes
BEGIN SELECT RAISE(ABORT,
    'table hash_tiles is append-only: hashes only follow those that are there'); END;
--;;
CREATE TRIGGER hash_tiles_delete BEFORE DELETE ON hash_tiles
BEGIN SELECT RAISE(ABORT, 'table hash_tiles is append-only: DELETE denied'); END;
--;;
CREATE TRIGGER hash_tiles_replace BEFORE INSERT ON hash_tiles
WHEN EXISTS (SELECT 1 FROM hash_tiles WHERE journal_id = NEW.journal_id AND level = NEW.level
        AND tile_index = NEW.tile_index AND substr(NEW.hashes, 1, length(hashes)) <> hashes)
BEGIN SELECT RAISE(ABORT, 'table hash_tiles is append-only: REPLACE denied'); END;
--;;
CREATE TRIGGER seals_update BEFORE UPDATE ON seals
WHEN NEW.journal_id <> OLD.journal_id OR NEW.size < OLD.size
    OR (NEW.size = OLD.size AND NEW.root <> OLD.root)
BEGIN SELECT RAISE(ABORT, 'the seal of a journal can only grow'); END;
--;;
CREATE TRIGGER seals_delete BEFORE DELETE ON seals
BEGIN SELECT RAISE(ABORT, 'table seals is append-only: DELETE denied'); END;
--;;
CREATE TRIGGER seals_replace BEFORE INSERT ON seals
WHEN EXISTS (SELECT 1 FROM seals WHERE journal_id = NEW.journal_id)
BEGIN SELECT RAISE(ABORT, 'table seals is append-only: REPLACE denied'); END;
--;;
CREATE TRIGGER signed_checkpoints_update BEFORE UPDATE ON signed_checkpoints
WHEN NEW.journal_id <> OLD.journal_id OR NEW.origin <> OLD.origin OR NEW.size <> OLD.size
    OR NEW.made_at <> OLD.made_at OR substr(NEW.note, 1, length(OLD.note)) <> OLD.note
BEGIN SELECT RAISE(ABORT, 'table signed_checkpoints is append-only: UPDATE denied'); END;
--;;
CREATE TRIGGER signed_checkpoints_delete BEFORE DELETE ON signed_checkpoints
WHEN NOT EXISTS (SELECT 1 FROM signed_checkpoints
        WHERE journal_id = OLD.journal_id AND origin = OLD.origin AND size > OLD.size)
    OR NOT EXISTS (SELECT 1 FROM signed_checkpoints
        WHERE journal_id = OLD.journal_id AND origin = OLD.origin AND size < OLD.size
            AND substr(made_at, 1, 16) = substr(OLD.made_at, 1, 16))
BEGIN SELECT RAISE(ABORT, 'table signed_checkpoints is append-only: DELETE denied'); END;
--;;
CREATE TRIGGER signed_checkpoints_replace BEFORE INSERT ON signed_checkpoints
WHEN EXISTS (SELECT 1 FROM signed_checkpoints
        WHERE journal_id = NEW.journal_id AND origin = NEW.origin AND size = NEW.size)
BEGIN SELECT RAISE(ABORT, 'table signed_checkpoints is append-only: REPLACE denied'); END;
