//! What a tool of an MCP server answered, as the model and the log get it.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::Value;

use crate::domain::depth::is_too_deep;
use crate::domain::limits;
use crate::tools::Outcome;

/// The structured content if there is any, else the texts; what is no text is named, not shown.
pub(super) fn outcome(result: CallToolResult) -> Outcome {
    let text = || {
        let parts: Vec<String> = result.content.iter().map(part).collect();
        parts.join("\n")
    };
    if result.is_error == Some(true) {
        let said = match (text(), result.structured_content) {
            (said, _) if !said.is_empty() => said,
            (_, Some(value)) => value.to_string(),
            (_, None) => "The tool failed and did not say why.".to_owned(),
        };
        return Outcome::Failed(cut(said));
    }
    match result.structured_content {
        Some(value) if !is_too_deep(&value) => Outcome::Completed(value),
        Some(deep) => Outcome::Completed(Value::String(deep.to_string())),
        None => Outcome::Completed(Value::String(text())),
    }
}

fn part(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => unseen("image", &image.mime_type, image.data.len()),
        ContentBlock::Audio(audio) => unseen("audio", &audio.mime_type, audio.data.len()),
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { text, .. } => text.clone(),
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                let kind = mime_type.as_deref().unwrap_or("application/octet-stream");
                unseen(&format!("resource {uri}"), kind, blob.len())
            }
            _ => "[a resource of an unknown kind, not shown]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => format!("[resource {}: {}]", link.name, link.uri),
        _ => "[content of an unknown kind, not shown]".to_owned(),
    }
}

/// Base64 has four characters for three bytes.
fn unseen(what: &str, kind: &str, base64: usize) -> String {
    format!("[{what}, {kind}, {} bytes, not shown]", base64 / 4 * 3)
}

/// The domain cuts results; errors are cut here, to the same size.
fn cut(mut text: String) -> String {
    let whole = text.len();
    if whole > limits::MAX_RESULT_BYTES {
        text.truncate(text.floor_char_boundary(limits::MAX_RESULT_BYTES));
        text.push_str(&format!("\n[cut: {} of {whole} bytes]", text.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(result: Value) -> Outcome {
        outcome(serde_json::from_value(result).unwrap())
    }

    #[test]
    fn structured_content_wins_over_text() {
        let both =
            json!({"content": [{"type": "text", "text": "7"}], "structuredContent": {"n": 7}});
        assert_eq!(read(both), Outcome::Completed(json!({"n": 7})));
        let texts =
            json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        assert_eq!(read(texts), Outcome::Completed(json!("a\nb")));
        assert_eq!(read(json!({"content": []})), Outcome::Completed(json!("")));
    }

    #[test]
    fn what_is_no_text_is_named() {
        let mixed = json!({"content": [
            {"type": "image", "data": "AAAA", "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "a:b", "mimeType": "text/plain", "text": "hi"}},
            {"type": "resource", "resource": {"uri": "a:c", "blob": "AAAAAAAA"}},
            {"type": "resource_link", "uri": "a:d", "name": "d"},
        ]});
        let expected = "[image, image/png, 3 bytes, not shown]\nhi\n\
            [resource a:c, application/octet-stream, 6 bytes, not shown]\n[resource d: a:d]";
        assert_eq!(read(mixed), Outcome::Completed(json!(expected)));
    }

    #[test]
    fn an_error_is_a_failed_call_with_its_text() {
        let error = json!({"isError": true, "content": [{"type": "text", "text": "no such file"}]});
        assert_eq!(read(error), Outcome::Failed("no such file".to_owned()));
        let silent = json!({"isError": true, "content": []});
        assert_eq!(
            read(silent),
            Outcome::Failed("The tool failed and did not say why.".to_owned())
        );
        let structured = json!({"isError": true, "content": [], "structuredContent": {"code": 7}});
        assert_eq!(read(structured), Outcome::Failed(r#"{"code":7}"#.to_owned()));
        let long =
            json!({"isError": true, "content": [{"type": "text", "text": "é".repeat(200_000)}]});
        let Outcome::Failed(cut) = read(long) else { panic!("an error") };
        assert!(cut.ends_with("[cut: 262144 of 400000 bytes]"), "{}", cut.len());
    }
}
