//! The spec and its reading page, from the binary: nothing is fetched from anywhere else.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{ApiState, openapi};

/// The page may load what this server gives, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; \
    style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; \
    base-uri 'none'; frame-ancestors 'none'";

/// A file that never changes while the process lives.
struct Asset {
    media_type: &'static str,
    bytes: Bytes,
    etag: HeaderValue,
}

impl Asset {
    fn new(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        use std::fmt::Write as _;
        let bytes = bytes.into();
        let mut etag = String::from("\"");
        for byte in Sha256::digest(&bytes).iter().take(16) {
            // Writing to a String cannot fail.
            let _ = write!(etag, "{byte:02x}");
        }
        etag.push('"');
        let etag = HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\""));
        Self { media_type, bytes, etag }
    }

    fn response(&self, asked: &HeaderMap) -> Response {
        let known = asked.get(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &self.etag));
        let body = if known { Body::empty() } else { Body::from(self.bytes.clone()) };
        let mut response = Response::new(body);
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

/// Whether an `If-None-Match` names this tag; weak or not makes no difference to it (RFC 9110).
pub fn names(tags: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(tags), Ok(etag)) = (tags.to_str(), etag.to_str()) else { return false };
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    tags.trim() == "*" || tags.split(',').any(|tag| bare(tag) == bare(etag))
}

static PAGE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("text/html; charset=utf-8", include_str!("assets/docs.html")));
static RAPIDOC: LazyLock<Asset> = LazyLock::new(|| {
    let script: &[u8] = include_bytes!("assets/rapidoc-min.js");
    Asset::new("text/javascript; charset=utf-8", Bytes::from_static(script))
});
static LICENSE: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("text/plain; charset=utf-8", include_str!("assets/rapidoc-LICENSE.txt"))
});
static JSON: LazyLock<Asset> = LazyLock::new(|| Asset::new("application/json", openapi::json()));
static YAML: LazyLock<Asset> = LazyLock::new(|| Asset::new("application/yaml", openapi::yaml()));

macro_rules! serve {
    ($asset:ident) => {
        get(async |headers: HeaderMap| $asset.response(&headers))
    };
}

/// The routes, which need no key and are not part of the spec.
pub fn router() -> Router<ApiState> {
    Router::new()
        .route("/openapi.json", serve!(JSON))
        .route("/openapi.yaml", serve!(YAML))
        .route("/docs", serve!(PAGE))
        .route("/docs/rapidoc-min.js", serve!(RAPIDOC))
        .route("/docs/rapidoc-LICENSE.txt", serve!(LICENSE))
}
