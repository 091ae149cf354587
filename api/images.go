package api

import "time"

// Image is a rootfs image that VMs can be started from.
type Image struct {
	BaseImageID string    `json:"base_image_id" format:"uuid"`
	ImageName   string    `json:"image_name"`
	OwnerID     string    `json:"owner_id" doc:"Organisation; empty: the server"`
	IsPublic    bool      `json:"is_public"`
	SourceType  string    `json:"source_type" doc:"dockerfile, docker, upload; debian: made by the server itself"`
	SizeMiB     int64     `json:"size_mib"`
	CreatedAt   time.Time `json:"created_at"`
	Description *string   `json:"description"`

	// What follows is [ours].
	Digest string       `json:"digest" doc:"[ours] Of all names, modes, owners, times and contents: equal for equal trees"`
	Source string       `json:"source,omitempty" doc:"[ours] Dockerfile or reference it was made of"`
	Config *ImageConfig `json:"config,omitempty" doc:"[ours] What it says about its processes"`
}

// ImageConfig is what an image says about how it is run, as in the OCI image specification.
type ImageConfig struct {
	Env          []string          `json:"env,omitempty" nullable:"false" doc:"KEY=VALUE"`
	WorkingDir   string            `json:"working_dir,omitempty"`
	User         string            `json:"user,omitempty" doc:"user[:group], names or numbers"`
	Entrypoint   []string          `json:"entrypoint,omitempty" nullable:"false"`
	Cmd          []string          `json:"cmd,omitempty" nullable:"false"`
	ExposedPorts []string          `json:"exposed_ports,omitempty" nullable:"false" doc:"8080/tcp"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// ImageList is the answer of GET /images.
type ImageList struct {
	Images []Image `json:"images" nullable:"false"`
	Total  int64   `json:"total"`
	Limit  int64   `json:"limit"`
	Offset int64   `json:"offset"`
}

// Kinds of ImageSource.
const (
	SourceDocker = "docker"
	SourceS3     = "s3"
)

// ImageSource says where an image is made from.
type ImageSource struct {
	Type     string  `json:"type" doc:"docker; s3 is known and not offered"`
	ImageRef *string `json:"image_ref,omitempty" nullable:"true" doc:"docker: name:tag or name@digest"`
	Bucket   *string `json:"bucket,omitempty" nullable:"true"`
	Key      *string `json:"key,omitempty" nullable:"true"`
}

// ImageRequest is the body of POST /images/create.
type ImageRequest struct {
	ImageName   string      `json:"image_name"`
	Source      ImageSource `json:"source"`
	Description *string     `json:"description,omitempty" nullable:"true"`
	Replace     bool        `json:"replace,omitempty" doc:"[ours] An image that has the name is replaced instead of being a conflict"`
	SizeMiB     *int64      `json:"size_mib,omitempty" nullable:"true" doc:"Free space beside the content, default 256; 0: as little as possible"`
}

// Words for how far the making of an image is.
const (
	ImagePending  = "pending"
	ImageBuilding = "building"
	ImageReady    = "ready"
	ImageFailed   = "failed"
)

// ImageJob is the answer of POST /images/create and /images/upload.
type ImageJob struct {
	JobID     string `json:"job_id" format:"uuid"`
	ImageName string `json:"image_name"`
	Status    string `json:"status" doc:"pending, building, ready or failed"`
}

// ImageStatus is the answer of GET /images/{name}/status.
type ImageStatus struct {
	ImageName    string  `json:"image_name"`
	Status       string  `json:"status" doc:"pending, building, ready or failed. While an image is made anew, and after that failed, the earlier one can be used"`
	SizeMiB      int64   `json:"size_mib" doc:"Of the image that can be used now; 0: there is none"`
	ErrorMessage *string `json:"error_message,omitempty" nullable:"true"`
}

// ImageDeleted is the answer of DELETE /images/{id}.
type ImageDeleted struct {
	Deleted     bool   `json:"deleted"`
	BaseImageID string `json:"base_image_id" format:"uuid"`
}

// Envelope is what answers of older generations of the API are wrapped in; the same fields are beside it.
type Envelope struct {
	DurationNS    int64     `json:"duration_ns"`
	OperationCode string    `json:"operation_code"`
	OperationID   string    `json:"operation_id" doc:"Id of the request"`
	TimeStart     time.Time `json:"time_start"`
}

// RootfsName is the data of a RootfsBuilt and a RootfsDeleted.
type RootfsName struct {
	RootfsName string `json:"rootfs_name"`
}

// RootfsNames is the data of a RootfsList.
type RootfsNames struct {
	RootfsNames []string `json:"rootfs_names" nullable:"false"`
}

// RootfsBuilt is the answer of PUT /rootfs/{name}: the image is there.
type RootfsBuilt struct {
	Envelope
	Data RootfsName `json:"data"`
	RootfsName
	Image Image `json:"image" doc:"[ours]"`
}

// RootfsList is the answer of GET /rootfs.
type RootfsList struct {
	Envelope
	Data RootfsNames `json:"data"`
	RootfsNames
}

// RootfsDeleted is the answer of DELETE /rootfs/{name}.
type RootfsDeleted struct {
	Envelope
	Data RootfsName `json:"data"`
	RootfsName
}

// Types of BuildEvent.
const (
	BuildLog    = "log"
	BuildResult = "result"
	BuildError  = "error"
)

// BuildEvent is a line of the answer of PUT /rootfs/{name} to a client that accepts application/x-ndjson. The first comes
// when the upload is complete; the last one is a result or an error.
type BuildEvent struct {
	Type   string       `json:"type" doc:"log, result or error"`
	Text   string       `json:"text,omitempty" doc:"log: output of the build, not always whole lines"`
	Result *RootfsBuilt `json:"result,omitempty"`
	Status int          `json:"status,omitempty" doc:"error: the HTTP status that a client gets who does not follow the build"`
	Error  string       `json:"error,omitempty"`
}
