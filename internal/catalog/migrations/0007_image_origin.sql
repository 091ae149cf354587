-- +goose Up
-- The engine's image that a rootfs image was made of, with all that decides how: equal origins give equal files. Empty: not known.
ALTER TABLE images ADD COLUMN origin TEXT NOT NULL DEFAULT '';

-- +goose Down
SELECT 1;
