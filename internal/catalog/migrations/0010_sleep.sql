-- +goose Up
ALTER TABLE vms ADD COLUMN sleep_after INTEGER; -- seconds without use; 0 never, NULL as the server says
ALTER TABLE vms ADD COLUMN expires_at TEXT;     -- deleted then; NULL never
ALTER TABLE vms ADD COLUMN slept_at TEXT;       -- fell asleep last
ALTER TABLE vms ADD COLUMN woken_at TEXT;       -- had woken from that; before slept_at or NULL: not yet

-- +goose Down
SELECT 1;
