from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_TYPE_UNSPECIFIED: _ClassVar[EventType]
    EVENT_TYPE_VIDEO_CREATED: _ClassVar[EventType]
    EVENT_TYPE_VIDEO_UPDATED: _ClassVar[EventType]
    EVENT_TYPE_VIDEO_DELETED: _ClassVar[EventType]
EVENT_TYPE_UNSPECIFIED: EventType
EVENT_TYPE_VIDEO_CREATED: EventType
EVENT_TYPE_VIDEO_UPDATED: EventType
EVENT_TYPE_VIDEO_DELETED: EventType

class Event(_message.Message):
    __slots__ = ("event_id", "event_type", "aggregate_id", "aggregate_type", "version", "occurred_at", "created", "updated", "deleted")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_ID_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_TYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    event_type: EventType
    aggregate_id: str
    aggregate_type: str
    version: int
    occurred_at: str
    created: VideoCreated
    updated: VideoUpdated
    deleted: VideoDeleted
    def __init__(self, event_id: _Optional[str] = ..., event_type: _Optional[_Union[EventType, str]] = ..., aggregate_id: _Optional[str] = ..., aggregate_type: _Optional[str] = ..., version: _Optional[int] = ..., occurred_at: _Optional[str] = ..., created: _Optional[_Union[VideoCreated, _Mapping]] = ..., updated: _Optional[_Union[VideoUpdated, _Mapping]] = ..., deleted: _Optional[_Union[VideoDeleted, _Mapping]] = ...) -> None: ...

class VideoCreated(_message.Message):
    __slots__ = ("video_id", "uploader_id", "title", "description", "duration_micros", "version", "occurred_at", "status", "media_status", "analysis_status")
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    UPLOADER_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DURATION_MICROS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_STATUS_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_STATUS_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    uploader_id: str
    title: str
    description: str
    duration_micros: int
    version: int
    occurred_at: str
    status: str
    media_status: str
    analysis_status: str
    def __init__(self, video_id: _Optional[str] = ..., uploader_id: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., duration_micros: _Optional[int] = ..., version: _Optional[int] = ..., occurred_at: _Optional[str] = ..., status: _Optional[str] = ..., media_status: _Optional[str] = ..., analysis_status: _Optional[str] = ...) -> None: ...

class VideoUpdated(_message.Message):
    __slots__ = ("video_id", "version", "occurred_at", "null_fields", "title", "description", "duration_micros", "status", "media_status", "analysis_status", "thumbnail_url", "hls_master_playlist", "difficulty", "summary", "tags", "raw_subtitle_url", "published_at")
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    NULL_FIELDS_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DURATION_MICROS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_STATUS_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_STATUS_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_URL_FIELD_NUMBER: _ClassVar[int]
    HLS_MASTER_PLAYLIST_FIELD_NUMBER: _ClassVar[int]
    DIFFICULTY_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    RAW_SUBTITLE_URL_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    version: int
    occurred_at: str
    null_fields: _containers.RepeatedScalarFieldContainer[str]
    title: str
    description: str
    duration_micros: int
    status: str
    media_status: str
    analysis_status: str
    thumbnail_url: str
    hls_master_playlist: str
    difficulty: str
    summary: str
    tags: Tags
    raw_subtitle_url: str
    published_at: str
    def __init__(self, video_id: _Optional[str] = ..., version: _Optional[int] = ..., occurred_at: _Optional[str] = ..., null_fields: _Optional[_Iterable[str]] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., duration_micros: _Optional[int] = ..., status: _Optional[str] = ..., media_status: _Optional[str] = ..., analysis_status: _Optional[str] = ..., thumbnail_url: _Optional[str] = ..., hls_master_playlist: _Optional[str] = ..., difficulty: _Optional[str] = ..., summary: _Optional[str] = ..., tags: _Optional[_Union[Tags, _Mapping]] = ..., raw_subtitle_url: _Optional[str] = ..., published_at: _Optional[str] = ...) -> None: ...

class VideoDeleted(_message.Message):
    __slots__ = ("video_id", "version", "occurred_at", "deleted_at", "reason")
    VIDEO_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    DELETED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    video_id: str
    version: int
    occurred_at: str
    deleted_at: str
    reason: str
    def __init__(self, video_id: _Optional[str] = ..., version: _Optional[int] = ..., occurred_at: _Optional[str] = ..., deleted_at: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Tags(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...
