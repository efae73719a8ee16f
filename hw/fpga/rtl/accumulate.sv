// PE accumulators and the result register of matrix-vector and vector-vector units.
module dp_accumulate #(
  parameter int PE = 1, IN = 16, ACC = 20
) (
  input  logic clk, rst, en,
  input  logic valid, first, last,
  input  logic signed [IN-1:0] sum [PE],
  output logic [PE*ACC-1:0] m_data, output logic m_valid
);
  logic done;
  logic signed [ACC-1:0] acc [PE];
  for (genvar p = 0; p < PE; p++) begin : g
    always_ff @(posedge clk) if (en && valid) acc[p] <= ACC'(sum[p]) + (first ? '0 : acc[p]);
    always_ff @(posedge clk) if (en) m_data[p*ACC +: ACC] <= acc[p];
  end
  always_ff @(posedge clk) begin
    if (rst) begin
      done <= 1'b0; m_valid <= 1'b0;
    end else if (en) begin
      done <= valid && last;
      m_valid <= done;
    end
  end
endmodule
